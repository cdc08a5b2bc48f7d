"""What reads cameras: rig files, calibration, lenses, decoding; a frame set becomes a frame."""
