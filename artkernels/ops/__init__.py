"""One file per operation: its public function, fake kernels, autograd and autocast."""
