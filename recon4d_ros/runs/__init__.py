"""The folder that a run leaves: how it is written, its files, and the same run heard over DDS."""
