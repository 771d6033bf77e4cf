"""Real data and weights that installed packages carry, and text that Python itself does."""
