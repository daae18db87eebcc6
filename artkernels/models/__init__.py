"""Published architectures in stock ``torch.nn`` layers, one file each."""
