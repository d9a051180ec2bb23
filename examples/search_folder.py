"""Search over a folder of my own, by words and by a picture. First: `finetune prepare digits`."""

from PIL import Image

from finetune import embed, search

index = embed("align-mini", "data/digits/images", "digits.npy").place
words = search("align-mini", index, texts="a handwritten digit zero", top=3)
picture = search("align-mini", index, images=Image.open("data/digits/images/0005.png"), top=3)
for found in (words, picture):
    print(found.rows[["query", "rank", "id", "similarity"]])
