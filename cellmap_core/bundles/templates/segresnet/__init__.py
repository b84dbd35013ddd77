"""SegResNetDS of MONAI: a residual encoder and decoder with deep supervision."""
