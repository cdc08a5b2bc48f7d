"""Empty so far: the losses and loops that learned networks will be trained with."""
