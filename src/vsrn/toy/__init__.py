"""A small invented world in the real file formats: coloured things in relations, five captions a picture."""
