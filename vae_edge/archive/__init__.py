"""Archives of millions of pictures: a plan of parts, each scored as a whole, on the workers of a Ray cluster.

pyarrow and Ray are imported inside the functions that need them: `pip install "vae-edge[archive]"`.
"""
