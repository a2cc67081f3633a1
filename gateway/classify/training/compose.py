"""More requests from a bank of instructions: each put before, after, around and apart from texts of every length.

What is learnt from rows alone is learnt by their accidents: that translations are short, that questions come last, that a system text
settles it. Here every kind meets every length, place, wrapping and tone. The bank is a file of instruction lines by kind and language,
system texts with the rules they go on with, what people say beside, and words to fill in; the texts are the documents beside the rows, and
code that rows hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from gateway.classify.model import KINDS
from gateway.classify.training.rows import DataError, Labelled
from gateway.classify.verdict import BY_LENGTH
from gateway.predict.prompts import TOKENS_PER_BYTE

Request = dict[str, Any]
BOUNDARY_TOKENS = (5_900, 6_476, 7_400)  # rows between the first and the last would say nothing clear
BARE_RATIO = 0.07  # of requests that are no code go to the completions endpoint, as one text
ASIDE_RATIO = 0.15
GIVEN = ("translation", "summary", "document")
CODE_KINDS = ("code_completion", "code_generation")

_SLOT = re.compile(r"\{(\w+)\}")
_NAME = re.compile(r"\b[A-Z][a-z]{3,}(?: [A-Z][a-z]+)?\b")
_SENTENCE = re.compile(r"[^.\n]{25,160}\.")
_FENCED = re.compile(r"```\w*\n(.{80,}?)```", re.DOTALL)
_POLITE = (
    *(["{}"] * 10), "Please {}", "Could you {}", "can you {}", "I want you to {}", "Hi! {}", "{} Thanks!", "{} thx", "Task: {}",
    "# Task\n{}",
    "### Instruction:\n{}", "Your task: {}", "hey, {}", "I need you to {}", "{} Keep it brief.", "{} No preamble.", "{} Return JSON.",
    "Good morning, {}", "Help me: {}",
)  # fmt: skip
_AROUND = (
    "{i}\n\n{t}", "{t}\n\n{i}", "{i}\n{t}", "{t}\n{i}", '{i}\n"""\n{t}\n"""', "<document>\n{t}\n</document>\n\n{i}", "Text:\n{t}\n\n{i}",
    "{i}\n---\n{t}", "{i}\n\nText: {t}", "Context:\n{t}\n\n{i}", "{i}\n\n<text>{t}</text>", "```\n{t}\n```\n{i}",
    "Here is the text:\n\n{t}\n\n{i}", "{t}\n\n---\n{i}", "# Input\n{t}\n\n# Task\n{i}", "{i}\n\nInput:\n{t}\n\nOutput:",
    "[BEGIN]\n{t}\n[END]\n{i}", "Document:\n{t}\n\n{i}", "{i} {t}", 'I have this text: "{t}" {i}', "Action: {i}\n\nSelected text:\n{t}",
    "{i}: {t}",
    "{t}\n=> {i}", '{{"task": "{i}", "body": "{t}"}}',
)  # fmt: skip
_QUESTION_AROUND = (
    "Context: {t}\n\nQuestion: {i}", "Context information is below.\n-----\n{t}\n-----\nGiven the context, answer: {i}\nAnswer:",
    "[1] {t}\n\n[2] {u}\n\nQuery: {i}", "Passage: {t}\nQuestion: {i}\nAnswer:", "Q: {i}\n\nSources:\n{t}\n\n{u}",
    "Document 1:\n{t}\n\nDocument 2:\n{u}\n\n{i}", "<context>{t}</context>\n<question>{i}</question>",
    "Search results:\n1. {t}\n2. {u}\n\nUser question: {i}",
)  # fmt: skip
_HEADINGS = (
    "Source {n}:\n", "[{n}] ", "--- file_{n}.txt ---\n", "Document {n}\n", "## Chapter {n}\n", "=== p. {n} ===\n", "EXHIBIT {n}\n\n",
    "<doc id={n}>\n", "{n}. ", "Part {n}:\n",
)  # fmt: skip
_NOTES_AROUND = (
    "{t}\n\n{i}", "{i}\n\n{t}", "{i}\n{t}", "Facts:\n{t}\n{i}", "{i}\n\nNotes:\n{t}", "Details:\n{t}\n\n{i}", "{i} {t}", "{t} {i}",
    "Title: {t}\n{i}", "Outline:\n{t}\n\n{i}", "{i}\n\nInput:\n{t}\n\nOutput:", "### Instruction:\n{i}\n\n### Input:\n{t}",
)  # fmt: skip
_BARE = (
    "{}", "{}", "{}\n", "{}\n\nAnswer:", "### Instruction:\n{}\n\n### Response:\n", "User: {}\nAssistant:", "[INST] {} [/INST]",
    "Human: {}\n\nAI:", "<|user|>\n{}\n<|assistant|>\n", "{}\n\nOutput:", "Q: {}\nA:", "Instruction: {}\nOutput:",
)  # fmt: skip
_CODE_AROUND = ("{i}\n\n```\n{t}\n```", "{i}\n\n{t}", "```\n{t}\n```\n\n{i}", "{t}\n\n{i}", "File: src/main\n```\n{t}\n```\n{i}")
_SAID = (
    "I have read it. What would you like to know?", "Understood.", "Sure, here you are.", "It says so in section 3.", "Yes, until six.",
    "You can do that in the settings under Account.", "That depends.", "Done. Anything else?", "About 40 percent, according to the table.",
)  # fmt: skip
_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), ("<PRE> ", " <SUF>", " <MID>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),
)  # fmt: skip
_COMMANDS = (
    "git commit -", "docker run -it --rm ", "kubectl get pods -n ", "SELECT name, count(*) FROM orders WH", 'find . -name "*.py" | xargs ',
    "ssh -L 80", "for i in ran", "const total = items.red", "tar -xz", "ls -l | gr", "rsync -av ./build/ ", "if __name__ == ",
)  # fmt: skip
_NEEDS_CODE = re.compile(
    r"\b(this|following code|these|TODOs|interface|below|pseudo|endpoint|deprecated|module|traceback|diesem|diese|das nach|ce code|"
    r"este código|questo codice|neste|tym kodzie|deze code|коде|koddaki|koden)\b|这|この|이 코드|هذا|->"
)


class Bank:
    """The file, and what texts there are."""

    def __init__(self, path: Path, documents: Sequence[str], rows: Sequence[Labelled]) -> None:
        try:
            said = json.loads(path.read_text("utf8"))
            self.instructions: dict[str, dict[str, list[str]]] = said["instructions"]
            self.system: dict[str, list[str]] = said["system"]
            self.fill: dict[str, list[str]] = said["fill"]
            self.notes: list[str] = said["notes"]
            self.rules: list[str] = said["rules"]
            self.holders: list[str] = said["holders"]
            self.asides: list[str] = said["asides"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path} is not a bank of instructions: {error!r}") from None
        self.documents = [text for text in documents if len(text) > 300]
        self.code = code_in(rows)
        if not self.documents or not self.code:
            raise DataError(f"{path}: composing takes documents and code; there are none beside the rows")


def code_in(rows: Sequence[Labelled]) -> list[str]:
    """What looks like code in rows about code."""
    found: list[str] = []
    for row in rows:
        if KINDS[row.kind] not in CODE_KINDS:
            continue
        prompt = row.request.get("prompt")
        if isinstance(prompt, str) and len(prompt) > 120:
            found.append(prompt)
        for message in row.request.get("messages") or ():
            content = message.get("content")
            if isinstance(content, str):
                found.extend(_FENCED.findall(content))
    return sorted(set(found))


class Composer:
    """Makes rows, each kind as often as asked; the same seed makes the same."""

    def __init__(self, bank: Bank, seed: int = 0) -> None:
        self.bank, self.chance = bank, Random(seed)  # noqa: S311

    def rows(self, of_each: int) -> list[dict[str, Any]]:
        """As they would stand in a file."""
        made: list[dict[str, Any]] = []
        for kind in KINDS:
            count = 0
            while count < of_each:
                request = self.request(kind)
                prompt = request.get("messages", request.get("prompt"))
                tokens = len(json.dumps(prompt, ensure_ascii=False).encode()) * TOKENS_PER_BYTE
                if kind in BY_LENGTH and BOUNDARY_TOKENS[0] < tokens < BOUNDARY_TOKENS[2]:
                    continue
                label = BY_LENGTH.get(kind, (kind, kind))[tokens > BOUNDARY_TOKENS[1]]
                endpoint = "/v1/completions" if "prompt" in request else "/v1/chat/completions"
                made.append({"label": label, "endpoint": endpoint, "request": {"model": "m", **request}, "family": f"bank-{kind}"})
                count += 1
        return made

    def request(self, kind: str) -> Request:
        """One of a kind."""
        chance = self.chance
        if kind == "code_completion":
            completion = self._completion()
            if "prompt" in completion:
                return completion
            messages = completion["messages"]
        else:
            messages = self._messages(kind)
        if not isinstance(messages[0].get("content"), str) or messages[0]["role"] != "system":
            system = self._system(kind)
            if system:
                messages = [{"role": chance.choice(["system"] * 8 + ["developer"]), "content": system}, *messages]
        request: Request = {"messages": messages}
        if kind != "code_completion" and self.chance.random() < BARE_RATIO:
            said = "\n\n".join(message["content"] for message in messages)
            request = {"prompt": self.chance.choice(_BARE).replace("{}", said)}
        if chance.random() < 0.35:
            request["max_tokens"] = chance.choice([16, 64, 128, 256, 400, 512, 800, 1024, 1500, 2048, 4096])
        return request

    # ---- words

    def _fill(self, line: str, text: str = "") -> str:
        names = _NAME.findall(text[:3000]) if text else []

        def word(match: re.Match[str]) -> str:
            if match[1] == "x" and names and self.chance.random() < 0.6:
                return str(self.chance.choice(names))
            choices = self.bank.fill.get(match[1])
            return self.chance.choice(choices) if choices else match[0]

        return _SLOT.sub(word, line)

    def _dressed(self, line: str) -> str:
        """The line as one of many would write it."""
        chance = self.chance
        polite = chance.choice(_POLITE)
        if polite.split("{}")[0][-2:-1].islower():
            line = line[:1].lower() + line[1:]
        line = polite.replace("{}", line)
        luck = chance.random()
        if luck < 0.08:
            return line.lower()
        if luck < 0.12:
            return line.rstrip(".?")
        if luck < 0.14:
            return line.upper()
        if luck < 0.2 and len(line) > 12:
            at = chance.randrange(1, len(line) - 2)
            return line[:at] + line[at + 1] + line[at] + line[at + 2 :]
        return line

    def _instruction(self, kind: str, text: str = "") -> str:
        lines = self.bank.instructions[kind]
        others = [language for language in lines if language != "en"]
        language = "en" if not others or self.chance.random() < 0.7 else self.chance.choice(others)
        line = self._fill(self.chance.choice(lines[language]), text)
        return self._with_aside(self._dressed(line)) if language == "en" else line

    def _with_aside(self, line: str) -> str:
        """People say more than what is to be done."""
        if self.chance.random() >= ASIDE_RATIO:
            return line
        aside = self._fill(self.chance.choice(self.bank.asides))
        return self.chance.choice((f"{aside} {line}", f"{line} {aside}", f"{aside}\n{line}", f"{line}\n{aside}"))

    def _system(self, kind: str) -> str | None:
        chance = self.chance
        luck = chance.random()
        own = 0.4 if kind == "chatbot" else 0.3
        if luck < own:
            text = chance.choice(self.bank.system[kind])
        elif luck < own + 0.22:
            text = chance.choice(self.bank.system["any"])
        elif luck < own + 0.32:  # an application that does other things as a rule
            text = chance.choice(self.bank.system[chance.choice(KINDS)])
        else:
            return None
        return self._with_rules(text) if chance.random() < 0.4 else text

    def _with_rules(self, text: str) -> str:
        """A system text as long as those of applications are: what it is for stands in it somewhere, mostly at its head."""
        chance = self.chance
        rules = [self._fill(rule) for rule in chance.sample(self.bank.rules, chance.randrange(2, 16))]
        rules.insert(0 if chance.random() < 0.8 else chance.randrange(len(rules)), text)
        return chance.choice((" ", "\n", "\n- ", "\n\n")).join(rules)

    # ---- texts

    def _clip(self, text: str, chars: int) -> str:
        if len(text) <= chars:
            return text
        at = self.chance.randrange(len(text) - chars)
        part = text[at : at + chars]
        part = part[part.find(" ", 0, 40) + 1 :]
        stop = part.rfind(".", len(part) // 2)
        return part[: stop + 1] if stop > 0 else part

    def _text(self) -> str:
        luck = self.chance.random()
        octave = self.chance.uniform(6, 10) if luck < 0.4 else self.chance.uniform(9, 14) if luck < 0.8 else self.chance.uniform(14.9, 17)
        chars = int(2**octave)
        heading = self.chance.choice(_HEADINGS) if self.chance.random() < 0.5 else ""
        text, number = heading.format(n=1) + self.chance.choice(self.bank.documents), 1
        while len(text) < chars:
            number += 1
            text += "\n\n" + heading.format(n=number) + self.chance.choice(self.bank.documents)
        return text[:chars] if heading else self._clip(text, chars)

    def _notes(self) -> str:
        """What somebody has to write a text from: facts, points, or a sentence."""
        chance = self.chance
        text = self._clip(chance.choice(self.bank.documents), 1500)
        sentences = [one.strip() for one in _SENTENCE.findall(text)] or [text[:120]]
        luck = chance.random()
        if luck < 0.2:
            return str(chance.choice(sentences))
        if luck < 0.35:
            return self._fill(chance.choice(self.bank.instructions["document"]["en"]), text)
        start = chance.choice(("- ", "* ", "", "\u2022 "))
        if luck < 0.55:
            return "\n".join(start + one[: chance.randrange(20, 90)] for one in chance.sample(sentences, min(len(sentences), 5)))
        words = text.split()
        facts = []
        for fact in chance.sample(self.bank.fill["fact"], chance.randrange(3, 9)):
            at = chance.randrange(max(len(words) - 4, 1))
            facts.append(start + fact + chance.choice((": ", ": ", " = ", " - ")) + " ".join(words[at : at + chance.randrange(1, 5)]))
        return "\n".join(facts)

    def _choices(self, text: str) -> str:
        """Answers to choose from, which push the question away from the end."""
        chance = self.chance
        names = sorted(set(_NAME.findall(text[:20_000]))) or self.bank.fill["x"]
        heading = chance.choice(("Choices:", "Options:", "Candidates:", "Answers:", ""))
        mark = chance.choice(("- ", "* ", "", " - "))
        return "\n" + "\n".join([heading, *(mark + name for name in chance.sample(names, min(len(names), chance.randrange(3, 25))))])

    def _code(self, chars: int) -> str:
        text = self.chance.choice(self.bank.code)
        return text[:chars]

    # ---- requests

    def _messages(self, kind: str) -> list[Request]:
        if kind in GIVEN:
            messages = self._about_a_text(kind)
        elif kind == "code_generation":
            line = self._instruction(kind)
            if _NEEDS_CODE.search(line) or self.chance.random() < 0.15:
                code = self._code(int(2 ** self.chance.uniform(7, 13)))
                line = self.chance.choice(_CODE_AROUND).format(i=line, t=code)
            messages = [_user(line)]
        elif kind == "content_generation" and self.chance.random() < 0.3:
            line = self._dressed(self._fill(self.chance.choice(self.bank.notes)))
            messages = [_user(self.chance.choice(_NOTES_AROUND).format(i=line, t=self._notes()))]
        else:
            line = self._instruction(kind)
            if kind == "content_generation" and self.chance.random() < 0.2:
                line += "\nBackground: " + self._clip(self.chance.choice(self.bank.documents), 300)
            messages = [_user(line)]
        turns = self.chance.random()
        if kind == "chatbot" and turns < 0.35:
            for _ in range(self.chance.choice([1, 1, 2, 3, 6, 12])):
                messages = [_user(self._instruction("chatbot")), _said(self.chance.choice(_SAID)), *messages]
        elif turns > 0.88:  # another kind of work came before
            before = self.chance.choice([k for k in KINDS if k != "code_completion"])
            earlier = self._instruction(before)
            if before in GIVEN:
                earlier += "\n\n" + self._clip(self.chance.choice(self.bank.documents), 400)
            messages = [_user(earlier), _said(self.chance.choice(_SAID)), *messages]
        return messages

    def _about_a_text(self, kind: str) -> list[Request]:
        chance = self.chance
        text = self._text()
        line = self._instruction(kind, text)
        luck = chance.random()
        if kind == "document" and luck < 0.4:
            if chance.random() < 0.25:
                line += self._choices(text)
            return [_user(chance.choice(_QUESTION_AROUND).format(i=line, t=text, u=self._text()[: len(text)]))]
        if luck < 0.74:
            return [_user(chance.choice(_AROUND).format(i=line, t=text))]
        if luck < 0.85 and kind != "document":  # the system text says what to do
            system = line if chance.random() < 0.6 else chance.choice(self.bank.system[kind])
            return [{"role": "system", "content": system}, _user(text)]
        if luck < (0.88 if kind == "document" else 0.94):
            return [_user(text), _said(chance.choice(_SAID[:3])), _user(line)]
        holder = chance.choice(("", chance.choice(self.bank.holders), chance.choice(self.bank.system[kind])))
        return [{"role": "system", "content": f"{holder}\n{text}".strip()}, _user(line)]

    def _completion(self) -> Request:
        chance = self.chance
        code = self._code(int(2 ** chance.uniform(6, 12.5)))
        cut = chance.randrange(len(code) // 3, len(code))
        before, after = code[:cut], code[cut + chance.randrange(5, 120) :][:1500]
        luck = chance.random()
        if luck < 0.12:
            return {"prompt": before, "suffix": after}
        if luck < 0.3:
            prefix, suffix, middle = chance.choice(_MARKS)
            return {"prompt": prefix + before + suffix + after + middle}
        if luck < 0.45:
            return {"prompt": before}
        system = {"role": "system", "content": chance.choice(self.bank.system["code_completion"])}
        if luck < 0.6:
            return {"messages": [system, _user(chance.choice(_COMMANDS))]}
        if luck < 0.8:
            shapes = (before, before + "<CURSOR>" + after, f"<prefix>{before}</prefix><suffix>{after}</suffix>", before + "\u2588" + after)
            return {"messages": [system, _user(chance.choice(shapes))]}
        line = self._instruction("code_completion")
        shapes = (f"{line}\n\n{before}", f"{line}\n```\n{before}\n```", f"{before}\n\n{line}", f"{line}\n{before}<FILL_ME>{after}")
        return {"messages": [_user(chance.choice(shapes))]}


def _user(text: str) -> Request:
    return {"role": "user", "content": text}


def _said(text: str) -> Request:
    return {"role": "assistant", "content": text}
