"""Coordinator and silos on machines of their own: Flower's processes, keys, and the public edge."""
