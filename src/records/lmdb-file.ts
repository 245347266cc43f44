/**
 * What an LMDB file must look like before it may be mapped.
 *
 * LMDB trusts its pages: a page number beyond the file is a read past the mapping (SIGBUS), a length or an
 * offset with a flipped bit sends it through memory it does not own, and neither can be caught. So before a
 * file is mapped its tree is walked here with plain reads: both meta pages, every page that the newest
 * commit reaches, every offset, length and page number in them. What this lets through LMDB can follow
 * without leaving the file; that the bytes are those that were written is for the checksums in `lmdb.ts`.
 *
 * The walk reads tree pages only, never the overflow pages that hold large values (except their first page
 * where the file will be written): for a file of 1 MiB values that is under 30 MiB in a terabyte.
 *
 * The layout is lmdb-js's own (its LMDB differs from the released one, so `mdb_stat` cannot read it), on a
 * 64-bit little-endian machine; page numbers and counts are 64 bits:
 *
 *     page header, 24 bytes   number 8, transaction 8, pad 2, flags 2, lower 2 and upper 2 (or page count 4)
 *     meta, after its header  magic 4, version 4, address 8, map size 8, free tree 48, main tree 48,
 *                             last page 8, transaction 8, boot id 8
 *     tree, 48 bytes          pad 4 (page size in the free tree), flags 2, depth 2, branch pages 8,
 *                             leaf pages 8, overflow pages 8, entries 8, root 8
 *     node                    low 2, high 2, flags 2, key length 2, key, then the value or, in a branch,
 *                             nothing: its page number is flags, high, low
 *     large value             first page 8, transaction 8, page count 8
 *
 * It does not repair and does not judge content.
 */

import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { CorruptionError, LIMITS } from '../base/index.ts';

const HEADER_BYTES = 24;
const META_BYTES = 144;
const TREE_BYTES = 48;
const LARGE_BYTES = 24;
const NODE_BYTES = 8;
const MAGIC = 0xbeefc0de;
const VERSION = 2;
/** LMDB's own bound on the depth of a tree (CURSOR_STACK). */
const DEPTH_MAX = 32;
const NO_PAGE = 0xffff_ffff_ffff_ffffn;

const PAGE_BRANCH = 1;
const PAGE_LEAF = 2;
const PAGE_OVERFLOW = 4;
const PAGE_META = 8;
const NODE_LARGE = 1;
const NODE_TREE = 2;
/** Flags of the free tree: integer keys; the rest are flags of the environment, of which only noSubdir is used. */
const FREE_TREE_FLAGS = 0x4008;

interface Tree {
  readonly flags: number;
  readonly depth: number;
  readonly branchPages: number;
  readonly leafPages: number;
  readonly overflowPages: number;
  readonly entries: number;
  /** Undefined in an empty tree. */
  readonly root: number | undefined;
}

interface Meta {
  readonly pageBytes: number;
  readonly free: Tree;
  readonly main: Tree;
  readonly lastPage: number;
  readonly transaction: bigint;
}

export interface LmdbFileOptions {
  /** The file is complete and never written again: it must hold every page that either meta page counts. */
  readonly whole?: boolean;
  /** The file will be written: check the list of free pages, and that no page is used twice. */
  readonly writable?: boolean;
}

/**
 * Checks that LMDB can follow the file at `path` without leaving it.
 *
 * @throws {CorruptionError} where it cannot, or where the file is cut short.
 */
export function checkLmdbFile(path: string, options: LmdbFileOptions = {}): void {
  const descriptor = openSync(path, 'r');
  try {
    new Walk(path, descriptor, fstatSync(descriptor).size, options).run();
  } finally {
    closeSync(descriptor);
  }
}

class Walk {
  readonly #path: string;
  readonly #descriptor: number;
  readonly #lengthBytes: number;
  readonly #options: LmdbFileOptions;
  /** Tree pages seen, and in a file to be written every page seen: a page in two places would be a loop. */
  readonly #seen = new Set<number>();
  #pageBytes = 0;
  #lastPage = 0;
  #transaction = 0n;

  constructor(path: string, descriptor: number, lengthBytes: number, options: LmdbFileOptions) {
    this.#path = path;
    this.#descriptor = descriptor;
    this.#lengthBytes = lengthBytes;
    this.#options = options;
  }

  run(): void {
    const first = this.#readMeta(0);
    const second = this.#readMeta(first.pageBytes);
    this.#require(second.pageBytes === first.pageBytes, 'its meta pages differ in page size');
    const newest = first.transaction >= second.transaction ? first : second;
    this.#pageBytes = newest.pageBytes;
    this.#lastPage = newest.lastPage;
    this.#transaction = newest.transaction;
    if (this.#options.whole === true) {
      const wanted = (Math.max(first.lastPage, second.lastPage) + 1) * newest.pageBytes;
      this.#require(
        this.#lengthBytes >= wanted,
        `it is cut short to ${this.#lengthBytes} of ${wanted} bytes`,
      );
    }
    this.#require(newest.free.flags === FREE_TREE_FLAGS, `it has the flags ${newest.free.flags}`);
    this.#walkTree(newest.main, (node) => this.#checkNamedTree(node));
    this.#walkTree(newest.free, (node) => this.#checkFreePages(node));
  }

  #readMeta(offsetBytes: number): Meta {
    const page = this.#read(offsetBytes, HEADER_BYTES + META_BYTES);
    const number = page.readBigUInt64LE(0);
    this.#require((page.readUInt16LE(18) & PAGE_META) !== 0, 'it has no meta page');
    this.#require(number === (offsetBytes === 0 ? 0n : 1n), 'its meta pages are not in order');
    this.#require(page.readUInt32LE(24) === MAGIC, 'its meta page has no magic');
    const version = page.readUInt32LE(28);
    this.#require(version === VERSION, `its LMDB version is ${version}, wanted ${VERSION}`);
    const pageBytes = page.readUInt32LE(48);
    this.#require(
      pageBytes >= 512 && pageBytes <= 65_536 && (pageBytes & (pageBytes - 1)) === 0,
      `its page size is ${pageBytes}`,
    );
    const lastPage = this.#count(page, 144);
    const mapBytes = this.#count(page, 40);
    const slackBytes = 2 ** 44;
    this.#require(mapBytes <= (lastPage + 1) * pageBytes + slackBytes, `its map size is ${mapBytes}`);
    return {
      pageBytes,
      lastPage,
      free: this.#tree(page.subarray(48, 96)),
      main: this.#tree(page.subarray(96, 144)),
      transaction: page.readBigUInt64LE(152),
    };
  }

  #tree(bytes: Buffer): Tree {
    return {
      flags: bytes.readUInt16LE(4),
      depth: bytes.readUInt16LE(6),
      branchPages: this.#count(bytes, 8),
      leafPages: this.#count(bytes, 16),
      overflowPages: this.#count(bytes, 24),
      entries: this.#count(bytes, 32),
      root: bytes.readBigUInt64LE(40) === NO_PAGE ? undefined : this.#count(bytes, 40),
    };
  }

  /** Walks one tree, handing every leaf node to `visit`, and compares what it found with the tree's counts. */
  #walkTree(tree: Tree, visit: (node: LeafNode) => void): void {
    if (tree.root === undefined) {
      this.#require(tree.entries === 0 && tree.depth === 0, 'an empty tree has entries');
      return;
    }
    this.#require(tree.depth > 0 && tree.depth <= DEPTH_MAX, `a tree is ${tree.depth} deep`);
    const found = { branches: 0, leaves: 0, overflow: 0, entries: 0 };
    const pending = [{ page: tree.root, depth: tree.depth }];
    for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
      const page = this.#readTreePage(next.page, next.depth === 1 ? PAGE_LEAF : PAGE_BRANCH);
      if (next.depth > 1) {
        found.branches += 1;
        for (const child of this.#children(page, next.page))
          pending.push({ page: child, depth: next.depth - 1 });
        continue;
      }
      found.leaves += 1;
      for (const node of this.#leafNodes(page, next.page)) {
        found.entries += 1;
        found.overflow += node.overflowPages;
        visit(node);
      }
    }
    this.#require(
      found.branches === tree.branchPages &&
        found.leaves === tree.leafPages &&
        found.overflow === tree.overflowPages &&
        found.entries === tree.entries,
      `a tree of ${tree.entries} entries has ${found.entries}`,
    );
  }

  #readTreePage(number: number, flags: number): Buffer {
    const page = this.#readPage(number, flags);
    const lower = page.readUInt16LE(20);
    const upper = page.readUInt16LE(22);
    this.#require(
      lower % 2 === 0 && lower > 0 && lower <= upper && upper <= this.#pageBytes - HEADER_BYTES,
      `page ${number} is filled from ${lower} to ${upper}`,
    );
    return page;
  }

  /** A page of a tree or the first of an overflow run, its number and flags checked, seen for the first time. */
  #readPage(number: number, flags: number): Buffer {
    this.#claim(number);
    const page = this.#read(number * this.#pageBytes, this.#pageBytes);
    this.#require(
      page.readBigUInt64LE(0) === BigInt(number) && page.readUInt16LE(18) === flags,
      `page ${number} is not the page that was written there`,
    );
    // LMDB would take a page of a later transaction for one of its own copies and write into the mapping.
    this.#require(page.readBigUInt64LE(8) <= this.#transaction, `page ${number} is of a later commit`);
    return page;
  }

  #claim(number: number): void {
    this.#require(number >= 2 && number <= this.#lastPage, `it refers to page ${number}`);
    this.#require(!this.#seen.has(number), `page ${number} is used twice`);
    this.#seen.add(number);
  }

  /** The offsets of a page's nodes, each with room for a node and its key. */
  *#nodes(page: Buffer, number: number): Generator<{ start: number; keyEnd: number }> {
    const upper = page.readUInt16LE(22);
    const end = HEADER_BYTES + page.readUInt16LE(20);
    for (let at = HEADER_BYTES; at < end; at += 2) {
      const pointer = page.readUInt16LE(at);
      const start = pointer + HEADER_BYTES;
      this.#require(
        pointer >= upper && pointer % 2 === 0 && start + NODE_BYTES <= this.#pageBytes,
        `page ${number} has a node at ${pointer}`,
      );
      const keyBytes = page.readUInt16LE(start + 6);
      const keyEnd = start + NODE_BYTES + keyBytes;
      this.#require(
        keyBytes <= LIMITS.databaseKeyBytesMax && keyEnd <= this.#pageBytes,
        `page ${number} has a key of ${keyBytes} bytes`,
      );
      yield { start, keyEnd };
    }
  }

  *#children(page: Buffer, number: number): Generator<number> {
    let count = 0;
    for (const { start } of this.#nodes(page, number)) {
      count += 1;
      yield page.readUInt32LE(start) + page.readUInt16LE(start + 4) * 2 ** 32;
    }
    this.#require(count > 1, `branch page ${number} has ${count} children`);
  }

  *#leafNodes(page: Buffer, number: number): Generator<LeafNode> {
    for (const { start, keyEnd } of this.#nodes(page, number)) {
      const flags = page.readUInt16LE(start + 4);
      const valueBytes = page.readUInt32LE(start);
      this.#require(
        flags === 0 || flags === NODE_LARGE || flags === NODE_TREE,
        `page ${number} has a node of kind ${flags}`,
      );
      this.#require(keyEnd > start + NODE_BYTES, `page ${number} has a node without a key`);
      const inPageBytes = flags === NODE_LARGE ? LARGE_BYTES : valueBytes;
      this.#require(keyEnd + inPageBytes <= this.#pageBytes, `page ${number} has ${valueBytes} byte values`);
      const inPage = page.subarray(keyEnd, keyEnd + inPageBytes);
      if (flags === NODE_LARGE) yield this.#largeNode(inPage, valueBytes);
      else yield { flags, overflowPages: 0, valueBytes, value: () => inPage };
    }
  }

  #largeNode(reference: Buffer, valueBytes: number): LeafNode {
    const first = this.#count(reference, 0);
    const pageCount = this.#count(reference, 16);
    this.#require(reference.readBigUInt64LE(8) <= this.#transaction, 'a value is of a later commit');
    const end = (first + pageCount) * this.#pageBytes;
    this.#require(
      first >= 2 && pageCount > 0 && first + pageCount - 1 <= this.#lastPage && end <= this.#lengthBytes,
      `it refers to pages ${first}+${pageCount}`,
    );
    this.#require(
      valueBytes + HEADER_BYTES <= pageCount * this.#pageBytes,
      `a value of ${valueBytes} bytes is in ${pageCount} pages`,
    );
    if (this.#options.writable === true) {
      const header = this.#readPage(first, PAGE_OVERFLOW);
      this.#require(header.readUInt32LE(20) === pageCount, `page ${first} does not hold its page count`);
      for (let page = first + 1; page < first + pageCount; page += 1) this.#claim(page);
    }
    const value = (): Buffer => this.#read(first * this.#pageBytes + HEADER_BYTES, valueBytes);
    return { flags: NODE_LARGE, overflowPages: pageCount, valueBytes, value };
  }

  #checkNamedTree(node: LeafNode): void {
    this.#require(node.flags === NODE_TREE && node.valueBytes === TREE_BYTES, 'its main tree holds a value');
    const tree = this.#tree(node.value());
    this.#require(tree.flags === 0, `a database has the flags ${tree.flags}`);
    this.#walkTree(tree, (inner) =>
      this.#require(inner.flags !== NODE_TREE, 'a database holds another database'),
    );
  }

  /** A record of free pages: a count, then page numbers, a negative one being the length of a run that follows. */
  #checkFreePages(node: LeafNode): void {
    this.#require(node.flags !== NODE_TREE, 'its free pages are a database');
    if (this.#options.writable !== true) return;
    const words = node.value();
    this.#require(words.length >= 8 && words.length % 8 === 0, 'its free pages are not whole');
    const count = this.#count(words, 0);
    this.#require((count + 1) * 8 <= words.length, `it lists ${count} free pages in ${words.length} bytes`);
    for (let at = 1; at <= count; at += 1) {
      const entry = words.readBigInt64LE(at * 8);
      if (entry >= 0n) {
        if (entry > 0n) this.#claim(Number(entry));
        continue;
      }
      at += 1;
      this.#require(at <= count, 'its free pages end in a run without a start');
      const start = this.#count(words, at * 8);
      this.#require(-entry <= BigInt(this.#lastPage), `it lists a run of ${-entry} free pages`);
      for (let page = start; page < start + Number(-entry); page += 1) this.#claim(page);
    }
  }

  /** A 64-bit number that must be a safe integer. */
  #count(bytes: Buffer, at: number): number {
    const value = bytes.readBigUInt64LE(at);
    this.#require(value <= BigInt(Number.MAX_SAFE_INTEGER), `it holds the number ${value}`);
    return Number(value);
  }

  #read(offsetBytes: number, lengthBytes: number): Buffer {
    const target = Buffer.allocUnsafe(lengthBytes);
    const wholeBytes = offsetBytes + lengthBytes;
    this.#require(
      wholeBytes <= this.#lengthBytes,
      `it is cut short to ${this.#lengthBytes} bytes, wanted ${wholeBytes}`,
    );
    const got = readSync(this.#descriptor, target, 0, lengthBytes, offsetBytes);
    this.#require(got === lengthBytes, `only ${got} of ${lengthBytes} bytes can be read at ${offsetBytes}`);
    return target;
  }

  #require(condition: boolean, found: string): void {
    if (condition) return;
    throw new CorruptionError(`Database file ${this.#path} is damaged: ${found}`, {
      where: this.#path,
      found,
    });
  }
}

interface LeafNode {
  readonly flags: number;
  readonly overflowPages: number;
  readonly valueBytes: number;
  value(): Buffer;
}
