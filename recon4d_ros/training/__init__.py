"""Training of what is learned here, on the procedural world alone."""
