"""SwinUNETR of MONAI: an encoder of shifted-window attention, a decoder of convolutions."""
