"""A reference for ports to other languages: a kit with pictures and right answers, and a check that names mistakes."""
