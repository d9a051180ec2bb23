"""The two towers of ALIGN: embedding with them, adapting them, merging the adapters back."""
