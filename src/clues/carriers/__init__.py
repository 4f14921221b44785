"""What carries messages between the two sides: in this process, or over Flower."""
