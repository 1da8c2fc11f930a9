"""TileLang kernels of the mixture of experts."""
