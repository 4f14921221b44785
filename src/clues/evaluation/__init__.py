"""What may read labels: detection, knowledge, comparison of arms."""
