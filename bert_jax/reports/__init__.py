"""What runs leave for people: tables, curves and pictures of mistakes."""
