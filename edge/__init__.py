"""What puts a model on a device: calibrate, export, measure and bundle it, then flash it."""
