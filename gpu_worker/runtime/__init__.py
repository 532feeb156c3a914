"""Frameworks that run models, behind one small port."""
