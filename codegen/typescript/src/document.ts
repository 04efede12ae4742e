import type { DocumentNode } from "graphql";

/**
 * The text of an operation with the fragments it uses. The generated code takes documents for parsed ones; here they
 * are only ever sent, so they stay the text that they are.
 */
export function gql(pieces: TemplateStringsArray, ...fragments: DocumentNode[]): DocumentNode {
  const text = pieces.reduce((before, piece, index) => `${before}${textOf(fragments[index - 1])}${piece}`);
  return text.trim() as unknown as DocumentNode;
}

export function textOf(document: DocumentNode | undefined): string {
  return (document ?? "") as unknown as string;
}
