"""What a reader sees in a row's text before any model does: named findings, each with its place.

Every module looks for one thing. A finding is *sure* where a rule is hardly ever wrong about it; only
such a finding may set a row aside. No torch here, and nothing that crosses the wall.
"""
