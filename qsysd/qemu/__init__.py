"""Model → QEMU: cold, as arguments, and live, over its monitor."""
