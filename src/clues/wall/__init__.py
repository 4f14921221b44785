"""What crosses between the silos and the coordinator, and the record of it; neither side is imported."""
