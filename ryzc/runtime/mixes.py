"""Prompts to measure speculation with: what a small assistant is asked, how an editor calls one, and copying.

The texts were written for this purpose. A prompt is a list of chat messages; a model without a chat template gets
their contents, joined by empty lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BenchPrompt:
    """A request of a mix.

    Attributes:
        name: unique.
        mix: ``chat``, ``edit`` (code, edits, answers with quotes) or ``repeat`` (copying and lists).
        messages: the conversation; the answer is what is measured.
        max_tokens: of the answer.
    """

    name: str
    mix: str
    messages: tuple[Mapping[str, str], ...]
    max_tokens: int = 192

    @property
    def text(self) -> str:
        """The prompt for a model without a chat template."""
        return "\n\n".join(message["content"] for message in self.messages) + "\n\n"


MIXES = ("chat", "edit", "repeat")


def _prompt(name: str, mix: str, *turns: str, max_tokens: int = 192) -> BenchPrompt:
    """Turns alternate between the user and the assistant."""
    roles = ("user", "assistant")
    messages = tuple({"role": roles[i % 2], "content": turn.strip()} for i, turn in enumerate(turns))
    return BenchPrompt(name, mix, messages, max_tokens)


_BRIDGE = """
The old bridge over the Lenna was closed on Monday after engineers found cracks in two of its eleven arches. "Nobody
was in danger at any time, but we do not want to wait for the winter," said the head of the city's building office,
Marta Olsen. The bridge, built in 1887, carries about nine thousand cars a day. Buses 4 and 11 take the ring road
until further notice, which adds twelve minutes to the way to the hospital. Shop owners on the east bank fear for
their business. "In the first week I had half of my usual customers," said the baker Jon Aldis. The city expects the
repair to take seven months and to cost 3.2 million, of which the state pays a third. A footbridge is to open beside
the old one in March.
"""

_MANUAL = """
The heat pump has three modes. In mode Eco the compressor runs at no more than 60 % of its power, and the water is
heated to 45 degrees. In mode Comfort the compressor runs as needed, and the water is heated to 55 degrees. In mode
Away the water is kept at 15 degrees, to protect the pipes from frost. To change the mode, press the left button for
three seconds until the display blinks, choose the mode with the arrow buttons, and press the left button again. Error
E4 means that the outside sensor is not connected. Error E7 means that the pressure of the water is below 0.8 bar:
refill the system until the pressure is between 1.2 and 1.8 bar, then press both arrow buttons to clear the error.
Clean the filter of the air inlet every three months. The device must not be covered while it runs.
"""

_MINUTES = """
Minutes, 12 May. Present: Ana, Bo, Chidi, Dana. Ana reported that the new search is finished and that the median
answer takes 40 ms instead of 210 ms. Bo said that the import of old orders still fails for customers with more than
one address; he needs two more days. Chidi asked to move the release from the 16th to the 20th. Dana objected: the
printer of the leaflets needs the final pictures on the 17th. It was agreed that the release stays on the 16th without
the import, and that the import follows on the 20th. Ana writes the notes for the release. Bo tells the three
customers who wait for the import. Chidi checks the backups before the release. Next meeting: 19 May, 10:00, in the
small room.
"""

_PYTHON = """
def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)


def variance(values):
    m = mean(values)
    total = 0
    for value in values:
        total += (value - m) ** 2
    return total / len(values)


def covariance(xs, ys):
    mx = mean(xs)
    my = mean(ys)
    total = 0
    for x, y in zip(xs, ys):
        total += (x - mx) * (y - my)
    return total / len(xs)
"""

_CLASS = """
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("the stack is empty")
        return self.items.pop()

    def peek(self):
        if not self.items:
            raise IndexError("the stack is empty")
        return self.items[-1]

    def __len__(self):
        return len(self.items)
"""

_JAVASCRIPT = """
function loadUser(id) {
  return fetch("/api/users/" + id)
    .then(function (response) {
      if (!response.ok) {
        throw new Error("user " + id + " not found");
      }
      return response.json();
    })
    .then(function (user) {
      user.name = user.first + " " + user.last;
      return user;
    });
}
"""

_CONFIG = """
server:
  host: 127.0.0.1
  port: 8080
  workers: 4
  timeout: 30
database:
  host: 127.0.0.1
  port: 5432
  name: orders
  user: orders
  pool: 10
cache:
  host: 127.0.0.1
  port: 6379
  ttl: 600
logging:
  level: info
  file: /var/log/orders.log
"""

_LETTER = """
Dear Mister Brandt, thank you for you're letter from the 3th of June. We are sorry to here that the lamp you has
ordered arrived broken. We has send a new one today, it should arrive until friday. Please put the broken lamp in the
same box and give it to the driver, you do not needs to pay for this. As a small excuse we adds a voucher over ten
euros to the parcel. If you has any questions, do not hesitate to calling us. With friendly greetings, Carla Wendt
"""

_TABLE = """
id,name,city,year,price
1,Anders,Oslo,2019,12.50
2,Berit,Bergen,2020,13.75
3,Carsten,Oslo,2021,11.20
4,Dagny,Trondheim,2019,15.00
5,Einar,Stavanger,2022,9.95
6,Frida,Oslo,2020,14.10
7,Gunnar,Bergen,2021,10.60
8,Hilde,Trondheim,2022,16.40
"""

_POEM = """
The ship goes out, the ship comes in,
the tide is thick, the tide is thin,
and I stand here upon the pier
and count the ships, year after year.
"""

PROMPTS: tuple[BenchPrompt, ...] = (
    _prompt("gravity", "chat", "Explain to a child of ten why things fall down."),
    _prompt("soup", "chat", "I have potatoes, leeks and a bit of cream. What soup can I make, and how?"),
    _prompt("letter", "chat", "Write a letter to my landlord: the heating in the kitchen has been cold for a week."),
    _prompt("lisbon", "chat", "Plan two days in Lisbon for a family with two small children."),
    _prompt("fox", "chat", "Tell me a short story about a fox who learns to share."),
    _prompt("sleep", "chat", "I sleep badly since I work from home. What would you advise?"),
    _prompt("inflation", "chat", "What is inflation, and who gains from it?"),
    _prompt("photosynthesis", "chat", "How does photosynthesis work? Answer in one paragraph."),
    _prompt(
        "running",
        "chat",
        "I want to start running. I am 45 and have not done any sport for years.",
        "That is a good idea. Start slowly: walk for five minutes, then run for one minute and walk for two, six times"
        " in a row. Do this three times a week, with a day of rest in between, and make the runs longer week by week.",
        "My knees hurt a little after the second time. Should I stop?",
    ),
    _prompt(
        "names",
        "chat",
        "We open a small shop for used books and coffee. Can you think of a name?",
        "How about The Second Chapter? It says that every book here begins a second life, and it sounds like a place to"
        " stay for a while.",
        "Nice. Give me five more and say in one sentence what each of them means.",
    ),
    _prompt("interview", "chat", "Which questions should I expect in an interview for a job as a nurse?"),
    _prompt("tcp", "chat", "What is the difference between TCP and UDP? When do I use which?"),
    _prompt("summarise", "edit", f"Summarise this article in three sentences and quote two people.\n{_BRIDGE}"),
    _prompt("extract", "edit", f"{_MINUTES}\nWho has to do what, and by when? Quote the minutes."),
    _prompt("manual", "edit", f"{_MANUAL}\nThe display shows E7. What does the manual say that I have to do?"),
    _prompt("docstrings", "edit", f"Add a docstring to each function. Return the whole file.\n```python{_PYTHON}```"),
    _prompt("rename", "edit", f"Rename `items` to `elements` everywhere. Return the class.\n```python{_CLASS}```"),
    _prompt("method", "edit", f"Add a method `clear` to this class and return the whole class.\n```python{_CLASS}```"),
    _prompt("async", "edit", f"Rewrite this function with async and await.\n```javascript{_JAVASCRIPT}```"),
    _prompt("config", "edit", f"Change every host to 10.0.0.5 and return the whole file.\n```yaml{_CONFIG}```"),
    _prompt("correct", "edit", f"Correct the mistakes in this letter and return the whole letter.\n{_LETTER}"),
    _prompt("tests", "edit", f"Write unit tests with pytest for this class.\n```python{_CLASS}```"),
    _prompt(
        "fibonacci", "edit", "Write a Python function that returns the first n Fibonacci numbers. Add a docstring."
    ),
    _prompt("sql", "edit", f"```csv{_TABLE}```\nWrite SQL that creates a table for this file and inserts every row."),
    _prompt("copy", "repeat", f"Repeat the following text word for word.\n{_BRIDGE}", max_tokens=256),
    _prompt("table", "repeat", f"Print this table again without any change, three times.\n{_TABLE}", max_tokens=256),
    _prompt("poem", "repeat", f"Write this poem down five times.\n{_POEM}", max_tokens=256),
    _prompt("code", "repeat", f"Print this class again without any change.\n```python{_CLASS}```", max_tokens=256),
    _prompt("rows", "repeat", f"Make a Markdown table of this file.\n```csv{_TABLE}```", max_tokens=256),
    _prompt("weekdays", "repeat", "Write the days of the week as a list, again and again.", max_tokens=256),
)


def prompts(mix: str) -> list[BenchPrompt]:
    """The prompts of a mix."""
    return [prompt for prompt in PROMPTS if prompt.mix == mix]
