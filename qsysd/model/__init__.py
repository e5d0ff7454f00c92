"""VMs and networks as frozen dataclasses, one file per noun. Each field is declared once (`model.field`)."""
