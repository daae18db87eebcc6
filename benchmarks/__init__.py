"""What needs the checkout: figures modelled on the emulator, runs that are kept, and the README's tables of them."""
