"""Files of answers for the servers of benchmarks whose test answers are not public."""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from mm1.eval.fewshot import Example, Submission
from mm1.eval.metrics.short_answers import LETTERS

Content = Callable[[Sequence[Example], Sequence[str]], bytes]
"""(queries, their answers) -> the content of a file."""


def _number(name: str) -> str | int:
    """The number that an id is; the id itself if it is none, so that no answer is lost."""
    return int(name) if name.isascii() and name.isdecimal() else name


def json_list(name: str, *, answer: str = "answer", value: Callable[[str], str | int] = _number) -> Content:
    """A JSON list with one object per query: its id under `name`, as `value` makes it of ours, and the answer."""

    def content(queries: Sequence[Example], answers: Sequence[str]) -> bytes:
        rows = [{name: value(query.id), answer: text} for query, text in zip(queries, answers, strict=True)]
        return json.dumps(rows, ensure_ascii=False).encode()

    return content


def json_map(queries: Sequence[Example], answers: Sequence[str]) -> bytes:
    """A JSON object that maps ids to answers."""
    rows = {query.id: text for query, text in zip(queries, answers, strict=True)}
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def sheet(queries: Sequence[Example], answers: Sequence[str]) -> bytes:
    """An xlsx table with the columns index, question, A, B, C, D and prediction."""
    letters = LETTERS[:4]
    rows: list[list[str]] = [["index", "question", *letters, "prediction"]]
    for query, text in zip(queries, answers, strict=True):
        choices = [*query.choices, "", "", "", ""][: len(letters)]
        rows.append([query.id, query.question, *choices, text])
    return _workbook(rows)


def _workbook(rows: Sequence[Sequence[str]]) -> bytes:
    """The smallest workbook that spreadsheet readers open: one sheet of texts, and of numbers where all is digits."""
    head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    main, office = "http://schemas.openxmlformats.org/spreadsheetml/2006/main", "application/vnd.openxmlformats"
    relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    cells = "".join("<row>" + "".join(_cell(text) for text in row) + "</row>" for row in rows)
    kind = f"{office}-officedocument.spreadsheetml"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        f'<Default Extension="rels" ContentType="{office}-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{kind}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="rId1" Type="{relations}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{relations}"><sheets>'
        '<sheet name="answers" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="rId1" Type="{relations}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{cells}</sheetData></worksheet>',
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), head + content)
    return file.getvalue()


def _cell(text: str) -> str:
    if text.isascii() and text.isdecimal():
        return f"<c><v>{int(text)}</v></c>"
    kept = "".join(letter for letter in text if letter in "\t\n" or letter >= " ")
    return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(kept)}</t></is></c>'


def _jpg(name: str) -> str:
    """The name of the image, which is VizWiz's id of a question; the hub's ids lack the ending."""
    return name if name.endswith(".jpg") else f"{name}.jpg"


EVALAI = "https://eval.ai/web/challenges/challenge-page/"
SUBMISSIONS: dict[str, Submission] = {
    "vqav2": Submission(f"{EVALAI}830", json_list("question_id")),
    "textvqa": Submission(f"{EVALAI}874", json_list("question_id")),
    "vizwiz": Submission(f"{EVALAI}2185", json_list("image", value=_jpg)),
    "docvqa": Submission("https://rrc.cvc.uab.es/?ch=17", json_list("questionId")),
    "infovqa": Submission("https://rrc.cvc.uab.es/?ch=17", json_list("questionId")),
    "mmmu": Submission(f"{EVALAI}2179", json_map),
    "mmbench": Submission("https://mmbench.opencompass.org.cn/mmbench-submission", sheet, "xlsx"),
    "nocaps": Submission(f"{EVALAI}355", json_list("image_id", answer="caption")),
    "coco": Submission("https://codalab.lisn.upsaclay.fr/competitions/7404", json_list("image_id", answer="caption")),
}
"""By task. The formats are those of the servers' pages and of the writers in lmms_eval/tasks, 0.7.3."""
