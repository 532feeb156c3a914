"""The main job from end to end: train, lease, infer, expire."""
