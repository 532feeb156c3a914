"""The HTTP front: V2 over REST. It parses and answers; it never computes."""
