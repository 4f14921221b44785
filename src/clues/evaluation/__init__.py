"""What may read labels: detection, knowledge, comparison of arms; and judges of answers."""
