"""Ready-made systems that make pictures, one file each."""
