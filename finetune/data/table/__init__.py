"""Files -> cells -> columns, splits, filters -> rows."""
