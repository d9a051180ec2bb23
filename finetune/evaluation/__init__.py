"""What is measured of a model, and what two measurements say of each other."""
