"""What a VM and a network are: frozen dataclasses, one file per noun, which `config` fills and checks."""
