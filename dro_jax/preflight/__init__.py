"""A run's step compiled for devices that are not here."""
