/**
 * Images of files: what is durable of each, which commits may have become so, and how one of these becomes the
 * file again. Part of `lossy-disk.ts`.
 *
 * Files are known by device and inode, since names move. A hard link kept here stops an inode number from
 * being given to another file, and still has the content of a file that was removed from the tree.
 */

import {
  chmodSync,
  closeSync,
  linkSync,
  openSync,
  readFileSync,
  statSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { present, type SeededRandom } from '../base/index.ts';
import { idOf } from './names.ts';
import { copySparse, overwriteSparse } from './sparse-copy.ts';

const PAGE_BYTES = 4096;

interface Image {
  readonly path: string;
  /** When it was taken, in the order of all events. */
  readonly sequence: number;
}

export interface RestoreOptions {
  readonly random: SeededRandom;
  /** Mix in pages of the present content. */
  readonly tear: boolean;
  /** Also where LMDB committed it. */
  readonly tearCommits: boolean;
  readonly keepInode: boolean;
}

/** The images of all files. */
export interface Images {
  /** The images of the file with this id; `path` is a name it has now, needed where it is not known yet. */
  of(id: string, path: string): FileImages;
  /** The images of the file that the path names now; undefined for what is no regular file. */
  ofPath(path: string): FileImages | undefined;
}

export class ImageStore implements Images {
  readonly #directory: string;
  readonly #commitCountMax: number;
  readonly #files = new Map<string, FileImages>();
  #made = 0;

  constructor(directory: string, commitCountMax: number) {
    this.#directory = directory;
    this.#commitCountMax = commitCountMax;
  }

  of(id: string, path: string): FileImages {
    const known = this.#files.get(id);
    if (known !== undefined) return known;
    const pin = this.#newPath('pin');
    linkSync(path, pin);
    const images = new FileImages(pin, this.#commitCountMax, () => this.#newPath('image'));
    this.#files.set(id, images);
    return images;
  }

  ofPath(path: string): FileImages | undefined {
    return statSync(path).isFile() ? this.of(idOf(path), path) : undefined;
  }

  #newPath(kind: string): string {
    this.#made += 1;
    return join(this.#directory, `${kind}-${this.#made}`);
  }
}

export class FileImages {
  readonly #pin: string;
  readonly #commitCountMax: number;
  readonly #newPath: () => string;
  #durable: Image | undefined;
  #commits: Image[] = [];
  #hasCommitted = false;
  /** Pages that a failed sync gave up, as they were then and as they are on the disk. */
  readonly #givenUp = new Map<number, { readonly old: Buffer; readonly durable: Buffer }>();

  constructor(pin: string, commitCountMax: number, newPath: () => string) {
    this.#pin = pin;
    this.#commitCountMax = commitCountMax;
    this.#newPath = newPath;
  }

  /** Takes an image of the present content; it counts for nothing until it is promoted. @returns its path. */
  take(): string {
    const path = this.#newPath();
    copySparse(this.#pin, path);
    if (this.#givenUp.size > 0) this.#dropGivenUp(path);
    copyTimes(this.#pin, path);
    return path;
  }

  /**
   * A sync of the file has failed: the system counts its pages as written, so that a later sync succeeds without them.
   * Only what is written again gets to the disk. Files of LMDB are left out: their pages are LMDB's to sync.
   */
  syncFailed(): void {
    if (this.#hasCommitted) return;
    const now = readFileSync(this.#pin);
    const durable = this.#durable === undefined ? Buffer.alloc(0) : readFileSync(this.#durable.path);
    for (let at = 0; at < now.length; at += PAGE_BYTES) {
      const old = now.subarray(at, at + PAGE_BYTES);
      const before = Buffer.alloc(old.length);
      durable.copy(before, 0, at, at + PAGE_BYTES);
      if (!old.equals(before)) this.#givenUp.set(at, { old, durable: before });
    }
  }

  /** A page that is written again, if only in part, is for the next sync to write. */
  written(atBytes: number, lengthBytes: number): void {
    for (const at of this.#givenUp.keys())
      if (at < atBytes + lengthBytes && atBytes < at + PAGE_BYTES) this.#givenUp.delete(at);
  }

  #dropGivenUp(path: string): void {
    const content = readFileSync(path);
    for (const [at, { old, durable }] of this.#givenUp) {
      // One that is longer or different by now was written again.
      if (content.subarray(at, at + PAGE_BYTES).equals(old)) durable.copy(content, at);
      else this.#givenUp.delete(at);
    }
    writeFileSync(path, content);
  }

  setDurable(sequence: number): void {
    this.promote(this.take(), sequence);
  }

  /** The sync that was issued when the image was taken has succeeded. */
  promote(path: string, sequence: number): void {
    if (this.#durable !== undefined && this.#durable.sequence > sequence) {
      unlinkSync(path);
      return;
    }
    const outdated = this.#commits.filter((commit) => commit.sequence < sequence);
    for (const image of this.#durable === undefined ? outdated : [this.#durable, ...outdated]) {
      unlinkSync(image.path);
    }
    this.#durable = { path, sequence };
    this.#commits = this.#commits.filter((commit) => commit.sequence > sequence);
  }

  addCommit(sequence: number): void {
    this.#hasCommitted = true;
    this.#commits.push({ path: this.take(), sequence });
    if (this.#commits.length > this.#commitCountMax) {
      unlinkSync(present(this.#commits.shift(), 'There is a commit to drop').path);
    }
  }

  /** Makes the file anew at `target`, where nothing is, with content that a power cut could have left. */
  restore(target: string, { random, tear, tearCommits, keepInode }: RestoreOptions): void {
    const image = random.pick([this.#durable?.path ?? '', ...this.#commits.map((commit) => commit.path)]);
    const isTorn = this.#hasCommitted ? tearCommits && random.chance(0.5) : tear && image !== '';
    const source = isTorn ? this.#torn(this.#durable?.path ?? '', random) : image;
    if (!keepInode) {
      if (source === '') closeSync(openSync(target, 'wx'));
      else copySparse(source, target);
      chmodSync(target, statSync(this.#pin).mode);
    } else {
      linkSync(this.#pin, target);
      if (source === '') truncateSync(target, 0);
      else if (!readFileSync(source).equals(readFileSync(target))) overwriteSparse(source, target);
      else return;
    }
    if (source !== '') copyTimes(source, target);
  }

  /** A mixture of an image, or of nothing, and of the present content. @returns the path of its own image. */
  #torn(image: string, random: SeededRandom): string {
    const then = image === '' ? Buffer.alloc(0) : readFileSync(image);
    const now = readFileSync(this.#pin);
    const size = random.pick([then.length, now.length, now.length]);
    const mixed = Buffer.alloc(size);
    then.copy(mixed);
    // Any subset of the pages; one that lacks only a few would be met too rarely by tossing for each alone, and one
    // that lacks a single page among many almost never.
    const share = random.pick([0.5, 0.95, 1]);
    const lost = share === 1 ? random.below(Math.ceil(size / PAGE_BYTES)) * PAGE_BYTES : undefined;
    for (let at = 0; at < Math.min(size, now.length); at += PAGE_BYTES) {
      if (at !== lost && random.chance(share)) now.copy(mixed, at, at, Math.min(at + PAGE_BYTES, size));
    }
    const path = this.#newPath();
    writeFileSync(path, mixed);
    return path;
  }
}

/** As exact as Node can set them: about a microsecond. */
function copyTimes(source: string, target: string): void {
  const { atimeMs, mtimeMs } = statSync(source);
  utimesSync(target, atimeMs / 1000, mtimeMs / 1000);
}
