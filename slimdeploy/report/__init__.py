"""What a person looks at: tables on a terminal, and a picture of the patches that are kept."""
