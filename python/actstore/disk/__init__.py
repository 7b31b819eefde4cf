"""A store on disk: its layout, its parts at one commit, its columns, and its writer."""
