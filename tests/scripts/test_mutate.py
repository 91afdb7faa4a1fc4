"""The faults that scripts/dev/mutate plants still fit the sources. The script itself is run by hand."""

import json
import unittest

from . import ROOT


class Mutations(unittest.TestCase):
    def test_every_fault_fits_its_file_once(self):
        lists = sorted((ROOT / "tests/mutations").glob("*.json"))
        self.assertTrue(lists)
        for path in lists:
            for number, mutation in enumerate(json.loads(path.read_text())["mutations"], 1):
                with self.subTest(list=path.name, number=number):
                    self.assertEqual((ROOT / mutation["file"]).read_text().count(mutation["text"]), 1)
                    self.assertNotEqual(mutation["text"], mutation["becomes"])
                    self.assertTrue(mutation["fault"])
