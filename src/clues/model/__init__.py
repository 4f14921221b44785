"""What trains and what combines."""
