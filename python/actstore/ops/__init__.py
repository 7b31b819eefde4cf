"""Operations on rows, one file per operation."""
