"""Files and folders on disk: written aside and renamed into place, compressed, hashed."""
