"""An index of photos: records in SQLite, vectors and regions in files that only grow, and engines that search them."""
