"""DiNTS of MONAI: searches a network's topology on the data, then trains what it found."""
