"""Files and folders on disk: written under another name and renamed, compressed, hashed."""
