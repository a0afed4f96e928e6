"""A second reader of the container, written from `spec/` alone, and what it finds of ours."""
