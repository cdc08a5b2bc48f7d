"""Images as they arrive: what their header says, and their pixels in the engine's channels."""
