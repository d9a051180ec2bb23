"""The two towers of ALIGN: they embed, take adapters, and have the adapters merged back."""
