"""The procedural driving world: images, depth, poses, masks and boxes, all exact, the same for the
same seed."""
