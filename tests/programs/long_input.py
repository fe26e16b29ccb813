import hashlib

text = input()
print(len(text), hashlib.sha256(text.encode()).hexdigest())
