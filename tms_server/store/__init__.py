"""The store on SQLAlchemy: SQLite by default."""
